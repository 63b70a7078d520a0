SELECT sample, sum(scale * dot(block, sketch)) AS score
FROM influence
GROUP BY sample
ORDER BY score DESC, sample
LIMIT 100
