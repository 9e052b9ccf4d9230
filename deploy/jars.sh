#!/bin/sh
# jars.sh SUMS FOLDER: what Spark SQL needs to read and write the table, fetched by Spark's own resolver into FOLDER and compared with SUMS.
# The Spark engine needs none of it.
set -eu
sums=$1
folder=$2
packages=org.apache.iceberg:iceberg-spark-runtime-4.1_2.13:1.12.0,org.apache.iceberg:iceberg-aws-bundle:1.12.0,org.postgresql:postgresql:42.7.13

ivy=$(mktemp -d)
trap 'rm -rf "$ivy"' EXIT
python - "$packages" "$ivy" <<'PYTHON'
import sys

from pyspark.sql import SparkSession

packages, ivy = sys.argv[1:]
settings = {"spark.jars.packages": packages, "spark.jars.ivy": ivy, "spark.ui.enabled": "false"}
SparkSession.builder.master("local[1]").config(map=settings).getOrCreate().stop()
PYTHON
mkdir -p "$folder"
cp "$ivy"/jars/*.jar "$folder"
chmod 0444 "$folder"/*.jar
cd "$folder"
sha256sum --check --strict --quiet "$sums"
