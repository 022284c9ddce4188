"""The proof of the books: a month of mixed traffic, exported and accepted by tools that nobody here wrote."""
