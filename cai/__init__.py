"""Constitutional AI and RLAIF: critique and revise by a file of principles, AI feedback, and training from it."""

__version__ = "0.1.0"
