"""The built-in corpus, made from the Unicode CLDR."""
