"""A finished run as an HTTP endpoint in the format of OpenAI's API."""
