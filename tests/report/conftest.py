"""What the tests of the report share."""

from in_process import cai  # noqa: F401 (fixture)
