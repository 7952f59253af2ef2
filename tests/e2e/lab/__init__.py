"""The laboratory that the tests work in: networks, the daemon under test, proxies, servers, and what watches them."""
