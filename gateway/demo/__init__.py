"""`gateway demo`: real hours through a real gateway, from decay over promotion to rollback, and a proof at the end."""
