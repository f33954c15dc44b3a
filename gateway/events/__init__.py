"""The records that cross a boundary, and their public JSON form. Pure."""
