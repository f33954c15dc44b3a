"""The prediction log: spool, Kafka shipper and reader, lookup by id."""
