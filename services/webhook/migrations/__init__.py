"""How the schema came to be; run at the start of the service."""
