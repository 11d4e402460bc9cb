"""Students: models that learn, their tokenizers, and how they are spoken to."""
