"""Our own OpenAPI page, held against what is answered to requests that are made from it."""
