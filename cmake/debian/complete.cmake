# SPDX-License-Identifier: Apache-2.0
# Run by CPack before it makes the packages: what Debian's policy wants beside what `cmake --install` puts in place.
find_program(GZIP gzip REQUIRED)
find_program(STRIP NAMES strip REQUIRED)

function(run)
  execute_process(COMMAND ${ARGV} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

function(compress)
  run(${GZIP} -9n ${ARGV})  # -n: without its time, the same each time
endfunction()

# For the time of the entry in changelog.Debian.gz, string(TIMESTAMP) takes SOURCE_DATE_EPOCH if it is set.
string(TIMESTAMP now "%a, %d %b %Y %H:%M:%S +0000" UTC)

foreach(component IN LISTS CPACK_COMPONENTS_ALL)
  string(TOUPPER ${component} upper)
  set(root ${CPACK_TEMPORARY_INSTALL_DIRECTORY}/${component})
  set(doc ${root}/usr/share/doc/${CPACK_DEBIAN_${upper}_PACKAGE_NAME})
  file(MAKE_DIRECTORY ${doc})
  file(COPY ${CMAKE_CURRENT_LIST_DIR}/copyright DESTINATION ${doc})
  file(COPY ${CMAKE_CURRENT_LIST_DIR}/../../CHANGELOG.md DESTINATION ${doc})
  file(RENAME ${doc}/CHANGELOG.md ${doc}/changelog)
  file(WRITE ${doc}/changelog.Debian
"sockalarm (${CPACK_PACKAGE_VERSION}-${CPACK_DEBIAN_PACKAGE_RELEASE}) unstable; urgency=medium

  * What has changed stands in changelog.gz.

 -- ${CPACK_DEBIAN_PACKAGE_MAINTAINER}  ${now}
")
  compress(${doc}/changelog ${doc}/changelog.Debian)

  file(GLOB pages ${root}/usr/share/man/*/*)
  if(pages)
    compress(${pages})
  endif()
  # `cmake --install --strip` does not do these.
  file(GLOB archives ${root}/usr/lib/*.a ${root}/usr/lib/*/*.a)
  foreach(archive IN LISTS archives)
    run(${STRIP} --strip-debug --enable-deterministic-archives ${archive})
  endforeach()
  if(EXISTS ${root}/usr/share/zsh/site-functions)  # which Debian leaves to the administrator
    file(RENAME ${root}/usr/share/zsh/site-functions ${root}/usr/share/zsh/vendor-completions)
  endif()

  # Whatever the umask, and whatever the modes of the sources.
  file(GLOB_RECURSE files LIST_DIRECTORIES true ${root}/*)
  foreach(file IN LISTS files)
    if(IS_SYMLINK ${file})
      continue()
    elseif(IS_DIRECTORY ${file} OR file MATCHES "/usr/s?bin/[^/]+$")
      set(modes OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
    else()
      set(modes OWNER_READ OWNER_WRITE GROUP_READ WORLD_READ)
    endif()
    file(CHMOD ${file} PERMISSIONS ${modes})
  endforeach()
endforeach()
