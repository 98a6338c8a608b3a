"""The toy video world: what happens in it (`world`), how it looks (`drawing`). It knows no files, patches or models."""
