"""A page where people meet the agent: `gatito play`."""
