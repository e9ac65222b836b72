"""What several guides share."""
