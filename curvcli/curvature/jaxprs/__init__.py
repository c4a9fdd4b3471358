"""Networks read and evaluated as equations."""
