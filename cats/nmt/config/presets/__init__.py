"""Settings of published recipes, one TOML file each. `cats.nmt.config.toml.read_preset` reads them."""
