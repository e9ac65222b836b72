"""Parts that several guides share."""
