"""The chassis of a service: settings, logs, traces, metrics, health, auth, HTTP."""
