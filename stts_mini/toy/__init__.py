"""The toy video world: what happens in it (`world`), how it looks (`drawing`). It uses no files, patches or models."""
