"""The commands of this layer; a module each group, `common` what they share, `registration` the entry point."""
