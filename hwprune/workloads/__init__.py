"""The built-in models and data sets that the command line can name."""
