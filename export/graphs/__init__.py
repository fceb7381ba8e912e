"""The graphs of a bundle as torch modules: a model's parts with the arithmetic around them.  Imports ``base``."""
