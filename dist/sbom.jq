# From what cargo-cyclonedx wrote: without the paths of this machine, and with the parts that are not crates ($list: a line
# each, name|version|licence|purl).
def nowhere:
  if type == "string" then gsub("path\\+file://[^#]*#"; "") | gsub("\\?download_url=file://[^#]*"; "") else . end;

walk(nowhere)
| ($list | split("\n") | map(select(length > 0) | split("|"))) as $parts
| .components += [
    $parts[]
    | . as [$name, $version, $licence, $purl]
    | {type: "library", "bom-ref": $purl, name: $name, version: $version, scope: "required",
       licenses: [{expression: $licence}], purl: $purl}
  ]
| .dependencies += [$parts[] | {ref: .[3]}]
| (.metadata.component."bom-ref") as $xctl
| (.dependencies[] | select(.ref == $xctl) | .dependsOn) += [$parts[] | .[3]]
