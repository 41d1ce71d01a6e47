"""Problems, logs, metrics and traces: the lowest layer; everything may import it."""
