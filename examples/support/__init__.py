"""What the example scripts share, one idea a module."""
