"""The kernel: messages, outbox, inbox, jobs, sagas and the chassis of a service. It knows no service."""
