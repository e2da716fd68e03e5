"""Settings of published recipes, a TOML file each; `cats.nmt.config.read_preset` reads them."""
