"""What is known where no cause explains a difference, piece by piece, each in its module."""
