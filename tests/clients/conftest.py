# Run by the clients' own environments, which have what they import.
collect_ignore = ["flows", "schemathesis"]
