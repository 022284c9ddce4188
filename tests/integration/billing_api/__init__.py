"""What people read of their money, on real servers."""
