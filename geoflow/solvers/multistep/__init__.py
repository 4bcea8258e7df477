"""Parts of a multistep method on a level set: past points, curvature learned, the implicit step."""
