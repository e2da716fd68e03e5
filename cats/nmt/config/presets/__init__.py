"""Settings of published recipes, a TOML file each; `cats.nmt.config.schema.read_preset` reads them."""
