"""Reporting: tables for terminal and Markdown, charts, the HTML page."""
