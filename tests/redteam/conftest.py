"""What the tests of red-teaming share."""

from in_process import cai  # noqa: F401 (fixture)
