"""The embedded world: verifiable problems, scripted teachers, a tiny tokenizer, all offline and seeded."""
