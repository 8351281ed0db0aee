"""Drawing on images, charts, figures for papers, and HTML pages."""
