"""Files that say which packages a project needs, one module a family of formats."""
