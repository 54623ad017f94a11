"""The history of the tables of `deployer`."""
