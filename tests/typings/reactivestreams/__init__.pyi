"""What this project uses of reactivestreams, which rsocket 0.4.20 brings along; it has no types of its own."""
