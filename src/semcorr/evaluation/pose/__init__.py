"""Which pose an object is shown in, told from features: instance matching distance and what follows from it."""
