"""A plan, a status, a topology, a schema as text, table, JSON or YAML: data in, text out, nothing printed."""
