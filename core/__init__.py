"""Basiscope: recover, read and use the directions along which a language model organises a data set."""

__version__ = "0.1.0"
