"""Networks for other engines: graphs without any search, and the arrays that they read."""
