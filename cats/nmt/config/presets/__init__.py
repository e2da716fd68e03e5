"""Settings of published recipes, a TOML file each; `cats.nmt.config.toml.read_preset` reads them."""
