"""What a call is answered beside its text: in other APIs, with its cost, twice, later."""
