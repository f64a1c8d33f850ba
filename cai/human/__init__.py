"""What people prefer: a rating page and its store, human data from elsewhere, and how far raters and judges agree."""
