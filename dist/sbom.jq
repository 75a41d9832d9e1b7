# From what cargo-cyclonedx wrote: without the paths of this machine, and with the parts that are not crates ($list: a line
# each, name|version|licence|purl|the distribution's version of it).
def nowhere:
  if type == "string" then gsub("path\\+file://[^#]*#"; "") | gsub("\\?download_url=file://[^#]*"; "") else . end;

walk(nowhere)
| ($list | split("\n") | map(select(length > 0) | split("|"))) as $parts
| .components += [
    $parts[]
    | . as [$name, $version, $licence, $purl, $release]
    | {type: "library", "bom-ref": $purl, name: $name, version: $version, scope: "required",
       licenses: [{expression: $licence}], purl: $purl}
      + if $release == "" then {} else {properties: [{name: "xctl:distribution:version", value: $release}]} end
  ]
| .dependencies += [$parts[] | {ref: .[3]}]
| (.metadata.component."bom-ref") as $xctl
| (.dependencies[] | select(.ref == $xctl) | .dependsOn) += [$parts[] | .[3]]
