"""Ground floor: settings, data, models, updates, quantizers, messages, engines and shared files."""
