"""The organization's control plane on a real Postgres, asked by the OpenAI SDK's own admin client."""
