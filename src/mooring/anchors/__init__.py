"""Where the weights live that an optimizer should not drift from."""
